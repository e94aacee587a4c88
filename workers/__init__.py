"""The workers: RQ workers that take jobs from the queue and have them run by the launcher. They have no privilege of
their own.
"""
