"""Simulated people: hidden tastes, users who vote by them over the real HTTP API, and a judge that says whether the policy followed.

Nothing here is trusted by the server: a simulated user is a client like any other, and the learner sees its votes alone, never its taste.
"""
