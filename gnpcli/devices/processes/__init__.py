"""Several processes that compute together: how they find each other, agree, and end as one."""
