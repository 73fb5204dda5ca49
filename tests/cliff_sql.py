"""What a cliff is, in plain SQL over the view `scores`: what the arithmetic of `analyze.falls` is held to.

`n_steep` is not in it.
"""

CLIFF_SQL = """
WITH s AS (SELECT example, position, to_decision, segment, score FROM scores WHERE probe = $probe),
ends AS (
    SELECT example, list_avg(list(score ORDER BY position) FILTER (segment = 'think')) AS plateau,
           max(score) FILTER (to_decision = 0) AS final,
           count(*) FILTER (segment = 'think') AS n_think,
           min(position) FILTER (segment = 'think') AS first_think
    FROM s GROUP BY example
),
drops AS (
    SELECT example, position, lag(score) OVER (PARTITION BY example ORDER BY position) - score AS fall
    FROM s WHERE to_decision <= 0
),
steepest AS (
    SELECT example, arg_max(position, (fall, -position)) AS steepest_position
    FROM drops JOIN ends USING (example) WHERE position > first_think AND fall IS NOT NULL GROUP BY example
)
SELECT example, plateau, final, plateau - final AS cliff, n_think, steepest_position
FROM ends LEFT JOIN steepest USING (example) ORDER BY example
"""
