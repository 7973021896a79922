"""What is done to training images.

`basic` crops, flips and normalises; `policies` says what AutoAugment and RandAugment do, `device`
and `host` do it; `mixing` erases and mixes; `pipeline` puts together what runs on the device.
"""
