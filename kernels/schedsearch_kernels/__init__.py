"""Operations with a kernel of their own: a torch reference and a Triton twin per folder.

Empty in this release; the runtime uses plain torch operations. Knows nothing of schedsearch.
"""
