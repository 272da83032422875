"""What runs in the guest: a writer, what must be there by its log, and the scenarios that make things go wrong.

    content.py   files that say themselves whether they are whole
    history.py   operations, their log, and what a power cut may leave of them
    writer.py    random operations on the mount
    world.py     the two disks, the daemon, the commands
    check.py     a tree as it is found, compared with what must be there; findings
    yanks.py     the drive is pulled during flushes
    cuts.py      the power goes during flushes: one boot each
    points.py    copies of both disks at each write of one flush, each recovered
    outages.py   the NAS falls silent
"""
