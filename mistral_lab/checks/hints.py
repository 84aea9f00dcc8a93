"""What lessons 2 and 3 both say of attention that goes wrong in the same way."""

TOO_EXTREME = "your weights are too extreme: are the scores divided by the square root of D?"
TOO_EVEN = "your weights are too even: divide by the square root of D, not by D"
CONSTANT = "you divide by the same number whatever D is: take D from q, here it is not always {:g}"
OVER_QUERIES = "your softmax runs over the queries: the weights of one query over its keys must add to 1"
HIDDEN_LATE = "you hide keys after the softmax, so the weights do not add to 1: mask the scores"
HIDDEN_BY_ZERO = "a hidden score of 0 still gets weight, because exp(0) is 1: make it minus infinity"
NO_SOFTMAX = "the softmax is missing: scores are no weights"
