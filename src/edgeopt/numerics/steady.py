def steady_start(s):
    return min(3, len(s) // 2)
