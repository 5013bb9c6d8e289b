"""Other libraries' names, argument orders and shapes on top of the ops: change one import, keep the rest.

Modules: ``flashfftconv``, ``safari`` (H3, Hyena, S4D, long-conv models), ``fly`` (Monarch layers), ``causal_conv1d``.
"""
