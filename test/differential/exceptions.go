package main

import "barque.dev/test/differential/compare"

// nothing matches what one of the two does not have.
const nothing = `^\(nothing\)$`

// exceptions are the differences that are meant. docs/api.md tells users of those that they may notice.
func exceptions() []compare.Exception {
	var all []compare.Exception
	for _, some := range [][]compare.Exception{faultsOfStock(), ownObjects(), documents(), wording()} {
		all = append(all, some...)
	}
	return all
}

// faultsOfStock are answers that stock itself should not give.
func faultsOfStock() []compare.Exception {
	const (
		refused  = `^500 Status, (400|422) Status$`
		invalid  = `^500 Status, 422 Status$`
		panicked = `^<nil> .*, 415 Status$`
		table    = `^(406 Status|200 [A-Z]\w+), 200 Table$`
	)
	return []compare.Exception{
		{Request: `/services`, Answers: `^(422|500) Status, 422 Status$`, At: `^body\.(message|details)`, Ours: `Duplicate`, Reason: "a port twice is told as such, and not as one that somebody else has"},
		{Answers: refused, At: `^(status|body\.code)$`, Reason: "what a client got wrong is no fault of the server's: 400 or 422 in place of 500"},
		{Answers: refused, At: `^body\.reason$`, Stock: nothing, Ours: `^(BadRequest|Invalid)$`, Reason: "likewise, its reason"},
		{Answers: `^500 Status, 400 Status$`, At: `^body\.message$`, Stock: `strconv\.ParseUint`, Ours: `^invalid resource version: .*strconv\.ParseUint`, Reason: "likewise, a resourceVersion that is no number"},
		{Request: `^PUT `, Answers: invalid, At: `^body\.(message|details)$`, Stock: `strconv\.ParseUint|` + nothing, Ours: `is invalid|causes`, Reason: "what is wrong with an object is told before what is wrong with its version"},
		{Request: `/binding`, Answers: invalid, At: `^body\.(message|details)$`, Ours: `target\.`, Reason: "likewise, a binding to nothing"},
		{Request: `boats\.example\.com`, Answers: panicked, At: `^failed$`, Stock: `INTERNAL_ERROR`, Reason: "stock panics at protobuf for custom resources"},
		{Request: `boats\.example\.com`, Answers: panicked, At: `^(body|header [A-Za-z-]+|status|indented)$`, Stock: nothing, Reason: "likewise, what is answered instead"},
		{Request: `^GET .*[?&]limit=`, Answers: `^200 .*List, 200 .*List$`, At: `^body\.metadata\.continue$`, Stock: `^continue$`, Ours: nothing, Reason: "the last page of a selection is known to be the last"},
		{Request: `^GET .*(resource\.k8s\.io/.*/status|/certificatesigningrequests/.*/approval|/(customresourcedefinitions|apiservices)/.*/status|/pods/[^/]+/(ephemeralcontainers|resize)\b)`, Answers: table, Reason: "statuses of devices, definitions and APIServices, approvals, and subresources of pods have tables like all others"},
		{Request: `apps/v1.*/daemonsets`, At: `\.deprecated\.daemonset\.template\.generation$`, Stock: nothing, Ours: `^\d+$`, Reason: "what old versions keep in annotations is seen in metadata alone, too"},
		{Request: `apps/v1.*/daemonsets`, At: `\.annotations$`, Stock: nothing, Ours: `^\{"deprecated\.daemonset\.template\.generation":"\d+"\}$`, Reason: "likewise, where there are no others"},
		{Request: `^(PUT|PATCH) .*/services/[^/]+/status`, Answers: `^409 Status, 404 Status$`, Reason: "a status is of a service that exists: stock, asked for no certain one, would make it"},
		{Request: `^POST .*/pods`, Answers: `^403 Status, 403 Status$`, At: `^body\.message$`, Stock: `invalid resource name|serviceaccount "`, Ours: `not found$`, Reason: "an account that can't be is not there"},
		{Request: `/services.*[?&]dryRun`, At: `^body\.(message|details)`, Ours: `provided port is`, Reason: "a dry run looks whether a node port can be had", Rare: true},
		{Request: `[?&]resourceVersion=0`, At: `^body\.items\[\]\.`, Stock: nothing, Reason: "what was written a moment ago stock's cache may not have yet", Rare: true},
		{Request: `boats\.example\.com`, At: `^(body|header (Content-Type\[0\]|X-Content-Type-Options)|indented)$`, Stock: `404 page not found|text/plain|nosniff|` + nothing, Answers: `^404 .*, 404 Status$`, Reason: "stock has not begun to serve a definition, and answers as where there is no API", Rare: true},
		{At: `^header Vary$`, Stock: nothing, Ours: `^\["Accept"\]$`, Reason: "caches are told that the document depends on what is accepted"},
		{At: `^body\.(items|rows)$`, Stock: `^null$`, Ours: `^\[\]$`, Reason: "an empty list is a list"},
		{At: `columnDefinitions\[\]|\.cells$`, Request: `csistoragecapacities`, Reason: "the columns that Kubernetes has for storage capacities are shown"},
		{Answers: `^409 Status, 409 Status$`, At: `^body\.message$`, Stock: `Key: /.*AdditionalErrorMsg: Precondition failed`, Ours: `Precondition failed`, Reason: "errors do not tell keys of the store"},
		{Request: `^(HEAD|POST|PUT|PATCH|DELETE|OPTIONS|FROB|TRACE) /(apis?|openapi/v[23]|version|healthz)?$`, Reason: "documents are read, and nothing else"},
	}
}

// ownObjects are those that one of the two makes by itself.
func ownObjects() []compare.Exception {
	return []compare.Exception{
		{At: `\[\]\.barque:`, Stock: nothing, Reason: "roles of Barque's own"},
		{At: `\[\]\.kube-system/kube-dns`, Stock: nothing, Reason: "DNS is inside"},
		{At: `default/kubernetes\..*(managedFields|targetPort)`, Reason: "the service kubernetes is made in one write"},
		{At: `\[\]\.kubernetes\.(object\.)?(metadata\.managedFields|status\.conditions)`, Reason: "the default ServiceCIDR is made by the server, not by a controller"},
		{At: `extension-apiserver-authentication`, Ours: `equestheader|front-proxy|BEGIN|X-Remote|\{\}|7`, Reason: "there is a front proxy, and stock here has none"},
		{Request: `^GET .*clusterrole(s|bindings)\?watch`, At: `^body\.\$documents$`, Ours: `barque:`, Reason: "roles of Barque's own, in watches"},
		{Request: `customresourcedefinitions\?watch`, At: `^body\.\$documents`, Reason: "names and conditions of definitions are written at once"},
		{Request: `servicecidrs(/kubernetes$|\?watch)`, At: `metadata\.managedFields`, Reason: "likewise, by itself and in watches"},
		{At: `componentstatus`, Ours: nothing, Reason: "componentstatuses, which asks schedulers on this machine, is not served"},
		{Request: `reviews|/token\b`, At: `^body\.metadata\.managedFields$`, Ours: nothing, Reason: "nobody manages the fields of what is not kept"},
		{Request: `resourcequotas`, At: `managedFields`, Reason: "usage that is written together with what uses it has no field manager"},
		{Request: `flowschemas`, At: `^body\.(message|details\.causes\[\d\]\.message)$`, Stock: `config-consumer`, Reason: "likewise, where an object that is refused is quoted", Rare: true},
		{Request: `ipaddresses\?watch`, At: `^body\.\$documents$`, Ours: `kube-dns`, Reason: "DNS is inside, in watches", Rare: true},
		{Request: `customresourcedefinitions`, At: `status\.conditions\[\d\]\.(reason|status)$|f:conditions\.k:\{"type":"Terminating"\}$|resourceVersion$`, Ours: `Deletion|False|f:message|version of`, Answers: `^200 Cust.*, 200 Cust`, Reason: "what a definition leaves is deleted sooner", Rare: true},
		{Request: `customresourcedefinitions/`, At: `^body\.status\.conditions\[\d\]\.message$`, Stock: `storage is \(re\)initializing`, Ours: `removed all`, Reason: "likewise, while stock begins to serve it", Rare: true},
		{Request: `customresourcedefinitions/`, At: `f:conditions\.k:\{"type":"Terminating"\}(\.f:status)?$`, Stock: nothing + `|^\{"f:message":\{\},"f:reason":\{\}\}$`, Reason: "likewise, who wrote what of it", Rare: true},
		{Request: `^(DELETE|GET|PUT|PATCH) .*customresourcedefinitions/`, Answers: `^200 Cust.*, 404 Status$`, Reason: "likewise, and then the definition", Rare: true},
		{Request: `customresourcedefinitions\?watch`, At: `^body\.(object|type)$`, Stock: nothing, Reason: "likewise, in watches", Rare: true},
		{Request: `flowschemas`, At: `(^body\.|\.)metadata\.managedFields`, Reason: "conditions of FlowSchemas are updated, not applied"},
		{Request: `/componentstatuses`, Answers: `^404 Status, 404 Status$`, Reason: "likewise, its paths"},
	}
}

// documents are discovery and OpenAPI.
func documents() []compare.Exception {
	return []compare.Exception{
		{Request: `^(GET|HEAD) /version`, At: `^body\.(build|git|compiler|goVersion|platform)`, Reason: "the version is Barque's"},
		{Request: `^GET /api$`, At: `^body$`, Stock: `not what its type says`, Reason: "the document of versions says its own in protobuf, too"},
		{Request: `openid-configuration`, At: `^body\.jwks_uri$`, Reason: "the keys of tokens are at the issuer's address"},
		{Request: `^GET /$`, At: `^body\.paths$`, Reason: "hooks and checks are the server's own"},
		{At: `\.verbs(\[\d\])?$`, Request: `example\.com`, Reason: "verbs of custom resources are sorted like all"},
		{Request: `/openapi/v3`, At: `^(header Content-Type\[0\]|indented|header Vary\[0\])$`, Reason: "the index says that it is JSON"},
		{Request: `/openapi/v2`, At: `^header Vary$`, Reason: "likewise, in one line"},
	}
}

// wording is what people read and programs do not.
func wording() []compare.Exception {
	return []compare.Exception{
		{At: `status\.conditions\[\d\]\.message$`, Stock: `CustomResource`, Reason: "conditions of definitions are worded otherwise"},
		{Request: `accessreviews`, At: `^body\.(message|details\.(kind|causes\[\d\]\..*))$`, Ours: `AccessReview|attributes|Attributes|spec`, Reason: "reviews that are refused say what they are"},
		{Request: `poddisruptionbudgets`, At: `^body\.message$`, Stock: `cannot unmarshal`, Ours: `expected any scalar`, Reason: "a number or a name that is neither is found where fields are merged", Rare: true},
		{Request: `storageversionmigrations/`, At: `^body\.(message|details\.causes\[\d\]\.message)$`, Stock: `not well formed: version of`, Reason: "a resource version in words", Rare: true},
		{At: `^body\.message$`, Stock: `unknown conversion`, Reason: "an object of another kind is told without internals"},
		{At: `^body\.message$`, Stock: `handlers\.jsonPatchOp`, Reason: "likewise, patches that are no lists"},
		{Request: `^DELETE .*customresourcedefinitions`, At: `^body\.(message|details\.kind)$`, Stock: `precondition failed|customresourcedefinitions`, Reason: "preconditions of definitions are told like all others"},
		{At: `^body\.message$`, Stock: `requested object is a list`, Ours: `list is not an object`, Reason: "likewise, lists"},
		{At: `^body\.(message|details\.causes\[\d\]\.message)$`, Stock: `failed to allocate IP|must be a valid IP address`, Reason: "addresses are worded otherwise"},
		{Request: `/proxy`, At: `^body\.(message|details|reason)$`, Ours: `has no address|InternalError`, Reason: "nodes without addresses are worded otherwise"},
		{Request: `boats\.example\.com`, At: `^header Warning$`, Stock: `unknown field`, Ours: nothing, Reason: "no warnings of what another version would have lacked"},
		{Request: `/openapi/v3/apis/nothing`, At: `^(body|header Content-Type|header X-Content-Type-Options)$`, Reason: "a document that is not there is told in words"},
		{At: `resources\[order\]$`, Request: `example\.com`, Reason: "subresources are sorted by name"},
		{Request: `tokenreviews`, At: `^body\.status\.error$`, Reason: "a token that is not for the audience is told once"},
	}
}
