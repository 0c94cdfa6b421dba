"""Does selection beat random here, at equal compute?"""
