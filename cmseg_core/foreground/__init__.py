"""Cells against background: Segment Anything on sections, and a classical baseline beside it."""
