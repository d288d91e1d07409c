"""Runs a schedule: parameters and optimizer states on SSD, pools in host and device memory."""
