"""What can be asked: every option, said once, and the kinds of values that options take.

The standard library only: the command line is made of it before anything else is imported.
"""
