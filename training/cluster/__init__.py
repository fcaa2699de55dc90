"""The processes of a run: how they meet, watch each other, stop and exit."""
