"""From a file on the disk to an arrival: roots, notifications, scans, completion."""
