"""Flows: one acquisition from stack to report, and the night that finds and processes every new one."""
