"""The JSON that commands print, a file for each noun. Other code that prints the same JSON imports it from here.

Names and shapes are a contract with scripts. Source: design.md, section 5.
"""
