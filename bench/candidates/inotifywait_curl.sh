#!/bin/bash
# inotifywait_curl.sh ROOT PORT
inotifywait -m -q -e close_write -e moved_to --format '%w%f' "$1" |
    while IFS= read -r path; do
        [[ $path == *.txt ]] && curl -s -o /dev/null --data-binary "@$path" "http://127.0.0.1:$2/"
    done
