"""The daemon of a farm: HTTP over a unix socket, access by the mode of that socket."""
