"""The model: blocks of devices, scripted devices, and the kernel that steps them."""
