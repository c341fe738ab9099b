# Sourced by the launchers: whole NAME VALUE LEAST [MOST] ends the program
# unless the value is a whole number in that range.
whole() {
    local most=${4:-1000000}
    if [[ $2 =~ ^[0-9]{1,7}$ ]] && [ "$2" -ge "$3" ] && [ "$2" -le "$most" ]
    then
        return
    fi
    echo "$1 must be a whole number of at least $3${4:+ and at most $4};" \
        "got '$2'." >&2
    exit 2
}
