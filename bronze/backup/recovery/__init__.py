"""Recovery from a copy of the lake: restores, failovers, drills, snapshots of metadata."""
