#!/bin/bash
# fswatch_curl.sh ROOT PORT
fswatch -0 -l 0.1 --event Updated --event MovedTo --event Renamed "$1" |
    while IFS= read -r -d '' path; do
        [[ $path == *.txt ]] && curl -s -o /dev/null --data-binary "@$path" "http://127.0.0.1:$2/"
    done
