"""Pages: pure functions from documents to HTML. The templates escape every value."""
