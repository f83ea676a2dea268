# C only: see simopen.pxd.
