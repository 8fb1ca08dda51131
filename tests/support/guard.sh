# Keeps server processes for a test process, and ends them with it, however it ends.
#
# $1 is the folder of the servers, $2 the file for their output. Each line on standard input is a
# command: it is started in the background and its process id is printed. Standard input is a pipe
# whose only writer is the test process, so its end means that the test process is gone (or has let
# go of the server): then everything started here is killed and the folder removed.
dir=$1
log=$2
exec 3<&0 </dev/null

# Collects all descendants of this shell in $found, parents first. A process group would not do:
# PostgreSQL's backends and Erlang's helpers make sessions of their own.
find_descendants() {
    pairs=
    for stat in /proc/[0-9]*/stat; do
        { read -r line <"$stat"; } 2>/dev/null || continue
        # "pid (name) state parent ...": the name may hold blanks and brackets.
        set -- ${line##*) }
        pid=${stat#/proc/}
        pairs="$pairs ${pid%/stat}:$2"
    done
    found=" $$ "
    grew=yes
    while [ -n "$grew" ]; do
        grew=
        for pair in $pairs; do
            case "$found" in *" ${pair%:*} "*) continue ;; esac
            case "$found" in *" ${pair#*:} "*) found="$found${pair%:*} " grew=yes ;; esac
        done
    done
    found=${found#" $$ "}
}

while IFS= read -r line <&3; do
    eval "exec $line" >>"$log" 2>&1 3<&- &
    echo $!
done

# Twice: a process may have been forked between the look and the kill.
for _ in 1 2; do
    find_descendants
    for pid in $found; do kill -KILL "$pid" 2>/dev/null; done
done
wait
# The last files of dying processes may appear while the folder is being removed.
for _ in 1 2 3 4 5; do
    rm -rf "$dir" 2>/dev/null && break
    sleep 0.2
done
