"""A tape as a picture sees it: what is alive at every instant, where the peak is, and what makes it up.

``lives`` reads a tape into arrays, ``timeline`` answers questions about instants, ``groups`` adds up the bytes of one instant
by module, operator or role, and ``drawing`` thins a timeline to what a picture can show.
"""
