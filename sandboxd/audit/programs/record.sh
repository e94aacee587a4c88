# Writes down who has read it, as preload.so does: what the environment of a job names (BASH_ENV) is the job's.
echo bash "$UID" "$$" >>/tmp/loaded
