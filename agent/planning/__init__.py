"""Pure arithmetic and policy: what fits, what is chosen, what is good enough. Standard library only.

``agent.planning.plan(...)`` is the part that programs outside use.
"""

from agent.planning.plan import plan as plan
