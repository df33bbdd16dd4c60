"""The command line: `scloud NOUN VERB [NAME] [--options]`. One module per noun, imported when it is used.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found. Results go to stdout; progress and errors to stderr.
"""
