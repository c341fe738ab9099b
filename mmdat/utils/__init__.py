# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What a user's environment needs: set-up, reports, errors."""
