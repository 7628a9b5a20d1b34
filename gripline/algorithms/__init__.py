"""Learning rules, one short pure file each: numbers in, (loss, metrics) out; they log nothing and know no process."""
