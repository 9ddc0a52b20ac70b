"""From settings and facts to a plan: inspect, rules, compile, estimate, diff, replay."""
