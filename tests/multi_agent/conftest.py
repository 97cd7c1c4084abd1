"""The crew's tests run on a lab in memory; those that train are in test_real_lab.py."""
