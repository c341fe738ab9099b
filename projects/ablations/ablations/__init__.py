# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The paper's ablations: which runs they are, running them, showing them."""
