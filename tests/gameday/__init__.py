"""The game day: one thing is broken in a running mesh, and somebody with `seawall` commands finds and mends it."""
