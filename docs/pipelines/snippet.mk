# Copy into your Makefile, or `include` it. A target stops where the model is not good enough:
# the last line of the tool is the reason, and make adds its own `Error N` after it.

EXPORTER ?= exporter
MODEL    ?= models/reviews
DATA     ?= data/reviews.jsonl
TARGET   ?= mobile
ARTIFACT ?= dist/reviews-mobile
BASELINE ?= released/reviews-mobile

.PHONY: model model-check model-compare model-draft

model: ## export and judge; finished stages are reused
	@$(EXPORTER) export "$(MODEL)" --data "$(DATA)" --target "$(TARGET)" --out "$(ARTIFACT)"

model-draft: ## the same, where too little evidence is good enough to go on with
	@$(EXPORTER) export "$(MODEL)" --data "$(DATA)" --target "$(TARGET)" --out "$(ARTIFACT)" || [ $$? -eq 3 ]

model-check: ## judge what is there again, here, now
	@$(EXPORTER) check "$(ARTIFACT)"

model-compare: model ## may it replace what was released?
	@if [ -d "$(BASELINE)" ]; then $(EXPORTER) compare "$(BASELINE)" "$(ARTIFACT)"; \
	else echo "nothing was released yet: $(BASELINE)"; fi
