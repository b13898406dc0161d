"""stub"""
def generated():
    return []
