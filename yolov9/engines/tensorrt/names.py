"""Inputs and outputs that an engine's graph has beside those of a bundle; `suppression` says what they hold."""

MINIMUM = "minimum"
SHARE = "share"
CANDIDATES = "candidates"
SUMMARY = "summary"
CANDIDATE_ROWS = 7
SUMMARY_COLUMNS = 3
