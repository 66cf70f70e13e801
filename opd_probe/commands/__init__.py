"""What each command does, without a word about the command line. One module, one function, one command."""
