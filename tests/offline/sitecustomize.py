# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Forbids connections, and notes each that is tried, also if it is caught.

Python imports this before anything else where its folder is on PYTHONPATH,
hence in child processes too. It sees what goes through Python's sockets, as
urllib, requests and torch.hub do, and lookups of names.
"""

import os
import sys

NOTES = os.environ['OFFLINE_NOTES']
ALLOWED = os.environ.get('OFFLINE_ALLOWED', '').split()
PLACE = {'socket.connect': 1, 'socket.sendto': 1}
PLACE.update(dict.fromkeys(('socket.getaddrinfo', 'socket.gethostbyname'), 0))


def _watch(event, arguments):
    if event not in PLACE:
        return
    host = arguments[PLACE[event]]
    if event in ('socket.connect', 'socket.sendto'):
        if not isinstance(host, tuple):
            return  # a Unix socket, which stays on the machine
        host = host[0]
    with open(NOTES, 'a') as file:
        file.write(f'{host}\n')
    if host not in ALLOWED:
        raise ConnectionRefusedError(f'{event} of {host} is forbidden here')


sys.addaudithook(_watch)
