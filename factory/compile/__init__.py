"""Settings and facts to a plan, or to every reason why there is none. Pure: no I/O, no torch."""
