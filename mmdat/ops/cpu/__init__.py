# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What runs on a CPU: branches in chunks, linear layers, whole sampling."""
