"""The core: starts generations, runs them, and lets readers follow their logs. Knows no framework."""
