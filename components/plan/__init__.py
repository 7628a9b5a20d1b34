"""The first stage: checks the whole profile, draws the splits, opens the tracking, and hands each stage its section."""
