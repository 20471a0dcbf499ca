"""Commands outside LightningCLI, one module each.

A command is a module with `main(argv)`, which takes the words after the name of the command and returns the exit
status. It raises a `ValueError` for an invalid option or an unusable file; `lightning-paf` prints it as one line and
exits with 1. The first line of the module's docstring is its line in the help.
"""
