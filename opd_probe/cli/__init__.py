"""The command line: parse, call one function of ``opd_probe.commands``, print."""
