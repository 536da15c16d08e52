"""The web console: a process of its own, which reads as the commands do and changes things through the daemon.

A request comes in through app.py, which admits it (access.py) and calls a handler of `handlers/`; the handler gets
documents from gateway.py, and a function of `pages/` turns them into HTML. A fault here cannot touch replication.
Other code of fsrepl does not import this folder; only the command `fsrepl console` does.
"""
