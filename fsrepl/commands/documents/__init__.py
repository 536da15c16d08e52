"""The JSON that commands print, a file for each noun: whatever shows the same thing elsewhere takes it from here.

Names and shapes are a contract with scripts. Source: design.md, section 5.
"""
