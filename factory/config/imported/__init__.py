"""Configs of other tools, said in Factory's keys: `factory import-config FILE`."""
