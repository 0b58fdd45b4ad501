module customer-margin

go 1.24
