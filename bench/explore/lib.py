'''Throw-away research code behind the figures of docs/quality.md: codebook designs on SmolLM2 in PyTorch, on one GPU. It
shares nothing with kvbook. Expects the environment variable MODEL (GGUF), the package gguf, and token ids as u16 files
wt.u16, wv.u16, c4.u16 beside it (kvbook's own tokens of WikiText-2 test and valid, and C4).'''
import torch, numpy as np, sys, time, math, os, copy
sys.path.insert(0,os.path.dirname(__file__)); import gguf
from gguf.quants import dequantize
from torch.utils.checkpoint import checkpoint
dev='cuda'; torch.backends.cuda.matmul.allow_tf32=True; torch.backends.cudnn.allow_tf32=True
T=2048; NCAL=int(os.environ.get('NCAL','64')); NEV=int(os.environ.get('NEV','64')); B=4
base=os.path.dirname(os.path.abspath(__file__))
r=gguf.GGUFReader(os.environ['MODEL']); g_=lambda k:r.fields['llama.'+k].contents()
W={t.name:torch.from_numpy(np.array(dequantize(t.data,t.tensor_type),dtype=np.float32)).to(dev) for t in r.tensors}
L,H,G,E_,BASE,EPS=g_('block_count'),g_('attention.head_count'),g_('attention.head_count_kv'),g_('embedding_length'),g_('rope.freq_base'),g_('attention.layer_norm_rms_epsilon')
D=E_//H; R=H//G; SC=1/math.sqrt(D)
ii=torch.arange(T,device=dev); inv=BASE**(-torch.arange(0,D,2,device=dev).float()/D)
cs,sn=torch.cos(ii.float()[:,None]*inv),torch.sin(ii.float()[:,None]*inv)
def rope(x): a,b=x[...,0::2],x[...,1::2]; return torch.stack((a*cs-b*sn,sn*a+b*cs),-1).flatten(-2)
def ropep(x,p):
    a=p.float()[...,None]*inv; c_,s_=torch.cos(a),torch.sin(a); u,v=x[...,0::2],x[...,1::2]; return torch.stack((u*c_-v*s_,s_*u+v*c_),-1).flatten(-2)
def rms(x,w): return x*torch.rsqrt((x*x).mean(-1,keepdim=True)+EPS)*w
causal=torch.ones(T,T,device=dev,dtype=torch.bool).tril(); dist=ii[:,None]-ii[None,:]
rep=lambda t:t.repeat_interleave(R,1)
def qkv(x,l):
    p=f'blk.{l}.'; n=x.shape[0]; h=rms(x,W[p+'attn_norm.weight'])
    return ((h@W[p+'attn_q.weight'].T).view(n,T,H,D).transpose(1,2),(h@W[p+'attn_k.weight'].T).view(n,T,G,D).transpose(1,2),(h@W[p+'attn_v.weight'].T).view(n,T,G,D).transpose(1,2))
def post(x,o,l):
    p=f'blk.{l}.'; n=x.shape[0]
    x=x+o.transpose(1,2).reshape(n,T,H*D)@W[p+'attn_output.weight'].T
    h=rms(x,W[p+'ffn_norm.weight'])
    return x+(torch.nn.functional.silu(h@W[p+'ffn_gate.weight'].T)*(h@W[p+'ffn_up.weight'].T))@W[p+'ffn_down.weight'].T
def exact_attn(q,kp,v):
    return torch.nn.functional.scaled_dot_product_attention(rope(q),rep(rope(kp)),rep(v),is_causal=True)
def layer(x,l,hook):
    q,kp,v=qkv(x,l); return post(x,hook(l,q,kp,v),l)
def hidden(tok,hook=None,ck=False):
    x=W['token_embd.weight'][tok]; h=hook or (lambda l,q,kp,v:exact_attn(q,kp,v))
    for l in range(L): x=checkpoint(layer,x,l,h,use_reentrant=False) if ck else layer(x,l,h)
    return rms(x,W['output_norm.weight'])
def chunks(f,n,skip=0):
    a=np.fromfile(base+'/'+f,dtype=np.uint16).astype(np.int64); m=min(n,len(a)//T-skip); return torch.from_numpy(a[skip*T:(skip+m)*T].reshape(m,T)).to(dev)
cal=chunks('wv.u16',NCAL); val=chunks('wv.u16',16,64); ev=chunks('wt.u16',NEV); c4=chunks('c4.u16',NEV//2)
Emb=W['token_embd.weight']
def nll(data,hook=None):
    t=0.;m=0
    with torch.no_grad():
        for i in range(0,len(data),B):
            x=hidden(data[i:i+B],hook)
            for b in range(x.shape[0]): t+=torch.nn.functional.cross_entropy(x[b,:-1]@Emb.T,data[i+b,1:],reduction='sum').double().item(); m+=T-1
    return t/m
# ------------------------------------------------ capture
n=len(cal)*T
def capture(data):
    n=len(data)*T
    c=dict(K=torch.empty(L,G,n,D,device=dev,dtype=torch.float16),V=torch.empty(L,G,n,D,device=dev,dtype=torch.float16),wK=torch.zeros(L,G,n,device=dev),wV=torch.zeros(L,G,n,device=dev),MR=torch.zeros(L,G,D,D,device=dev)); off=[0]
    gen=torch.Generator(device=dev).manual_seed(1)
    def hook(l,q,kp,v):
        b=q.shape[0]; s=slice(off[0],off[0]+b*T); f=lambda t:t.transpose(0,1).reshape(G,b*T,-1)
        c['K'][l,:,s]=f(kp).half(); c['V'][l,:,s]=f(v).half()
        qr=rope(q); A=(qr@rep(rope(kp)).transpose(-1,-2)*SC).masked_fill_(~causal,-1e30).softmax(-1); o=A@rep(v)
        c['wV'][l,:,s]=A.sum(2).view(b,G,R,T).sum(2).transpose(0,1).reshape(G,-1); c['wK'][l,:,s]=escore(A,o,qr,v).transpose(0,1).reshape(G,-1)
        u=(torch.rand(b,1,T,device=dev,generator=gen)*(ii+1).float()).long(); q2=ropep(qr,-u)
        c['MR'][l]+=torch.einsum('bgrtd,bgrte->gde',q2.view(b,G,R,T,D),q2.view(b,G,R,T,D))
        return o
    with torch.no_grad():
        for i in range(0,len(data),B): hidden(data[i:i+B],hook); off[0]+=data[i:i+B].numel()
    return c
def escore(A,o,qr,v):
    b=A.shape[0]; qn=qr.norm(dim=-1)
    return (A*torch.cdist(o,rep(v))*qn[...,None]).sum(2).view(b,G,R,T).sum(2)
# ------------------------------------------------ k-means  X [S,n,d]
def assign(x,C,bs=32768):
    c2=(C*C).sum(-1); out=[]
    for j in range(0,x.shape[1],bs): out.append((c2[:,None]-2*x[:,j:j+bs]@C.transpose(1,2)).argmin(-1))
    return torch.cat(out,1)
def take(C,a): return torch.gather(C,1,a[...,None].expand(-1,-1,C.shape[-1]))
def wmean(x,w,a,k,old):
    m,n_,d=x.shape; num=torch.zeros(m,k,d,device=dev); den=torch.zeros(m,k,device=dev)
    num.scatter_add_(1,a[...,None].expand(-1,-1,d),x*w[...,None]); den.scatter_add_(1,a,w)
    return torch.where((den<=0)[...,None],old,num/den.clamp_min(1e-12)[...,None]),den
def kmeans(X,w,k,iters=12):
    S,n_,d=X.shape; C=torch.empty(S,k,d,device=dev); step=max(1,int(6e9/(min(n_,32768)*k*4*3)))
    for s in range(0,S,step):
        x=X[s:s+step].float(); m=x.shape[0]; ww=w[s:s+step] if w is not None else torch.ones(m,n_,device=dev); ww=ww/ww.mean(1,keepdim=True)
        c=torch.gather(x,1,torch.multinomial(ww.clamp_min(1e-9),k,replacement=False)[...,None].expand(-1,-1,d)).clone()
        for it in range(iters):
            a=assign(x,c); c,den=wmean(x,ww,a,k,c); emp=den<=0
            if it<iters-1 and emp.any(): alt=torch.gather(x,1,torch.multinomial(ww,k,replacement=True)[...,None].expand(-1,-1,d)); c=torch.where(emp[...,None],alt,c)
        C[s:s+step]=c
    return C
def msqrt(M,alpha,ridge=1e-3):
    M=M/torch.diagonal(M,dim1=-2,dim2=-1).mean(-1)[...,None,None]; e,U=torch.linalg.eigh(M.double()); e=(e.clamp_min(0)+ridge)**(alpha/2)
    return ((U*e[...,None,:])@U.transpose(-1,-2)).float()
def balance(ev,S):
    d=len(ev)//S; slots=[[] for _ in range(S)]; lp=[0.]*S; ev=ev.tolist()
    for i in sorted(range(len(ev)),key=lambda i:-ev[i]):
        j=min((j for j in range(S) if len(slots[j])<d),key=lambda j:(len(slots[j]),lp[j])) if False else min((j for j in range(S) if len(slots[j])<d),key=lambda j:(lp[j],len(slots[j]))); slots[j].append(i); lp[j]+=math.log(max(ev[i],1e-9))+50
    return sum(slots,[])
class Frame: pass
def frame(X,w,S,metric=None,alpha=.5,pca=True,mean=True):
    """T, Ti [L,G,D,D], mu; y=(x-mu)@T"""
    f=Frame(); f.T=torch.eye(D,device=dev).expand(L,G,D,D).clone() if metric is None else msqrt(metric,alpha); f.mu=torch.zeros(L,G,D,device=dev); f.ev=torch.zeros(L,G,D,device=dev)
    for l in range(L):
        for g in range(G):
            x=X[l,g].float(); wn=w[l,g]/w[l,g].sum()
            if mean: f.mu[l,g]=(x*wn[:,None]).sum(0)
            if pca:
                y=(x-f.mu[l,g])@f.T[l,g]; e,U=torch.linalg.eigh(((y*wn[:,None]).T@y).double()); o=balance(e,S); f.T[l,g]=f.T[l,g]@U.float()[:,o]; f.ev[l,g]=e.float()[o]
    f.Ti=torch.linalg.inv(f.T.double()).float(); return f
def reframe(f,S):
    """the same frame dealt into S groups"""
    g=copy.copy(f); g.T=f.T.clone(); 
    for l in range(L):
        for h in range(G): o=balance(f.ev[l,h].double(),S); g.T[l,h]=f.T[l,h][:,o]
    g.Ti=torch.linalg.inv(g.T.double()).float(); return g
class Book: pass
def groups(y,d): # [G,n,D]->[G*S,n,d]
    g,n_,_=y.shape; return y.reshape(g,n_,D//d,d).permute(0,2,1,3).reshape(g*(D//d),n_,d)
def ungroups(z,g): # inverse
    S=z.shape[0]//g; return z.view(g,S,z.shape[1],z.shape[2]).permute(0,2,1,3).reshape(g,z.shape[1],S*z.shape[2])
def train(X,w,f,d,k,stages=1,iters=12,rounds=8):
    S=D//d; b=Book(); b.f=f; b.d=d; b.k=k; b.M=stages; b.bits=stages*math.log2(k)/d
    b.C=torch.empty(L,G*S,stages*k,d,device=dev)
    for l in range(L):
        y=groups((X[l].float()-f.mu[l][:,None])@f.T[l],d).contiguous(); ww=w[l].repeat_interleave(S,0)
        if stages==1: b.C[l]=kmeans(y,ww,k,iters)
        else: b.C[l]=additive(y,ww/ww.mean(1,keepdim=True),k,stages,rounds)
    return b
def beam_codes(y,C,k,M,W_=8,bs=16384):
    """y [m,n,d]; C [m,M*k,d] -> codes list of M [m,n]"""
    m,n_,d=y.shape; out=[]
    Cs=C.view(m,M,k,d); c2=(Cs*Cs).sum(-1)
    for j in range(0,n_,bs):
        x=y[:,j:j+bs]; nb=x.shape[1]; res=x[:,:,None]; cost=torch.zeros(m,nb,1,device=dev); codes=torch.zeros(m,nb,1,0,dtype=torch.long,device=dev)
        for s in range(M):
            w_=res.shape[2]; dd=c2[:,s][:,None,None]-2*torch.einsum('mnwd,mkd->mnwk',res,Cs[:,s])+cost[...,None]
            kk=min(W_ if s<M-1 else 1,w_*k); v,i=dd.flatten(2).topk(kk,-1,largest=False); par=i//k; c=i%k
            codes=torch.cat([torch.gather(codes,2,par[...,None].expand(-1,-1,-1,codes.shape[-1])),c[...,None]],-1)
            res=torch.gather(res,2,par[...,None].expand(-1,-1,-1,d))-torch.gather(Cs[:,s],1,c.flatten(1)[...,None].expand(-1,-1,d)).view(m,nb,kk,d); cost=v
        out.append(codes[:,:,0])
    return torch.cat(out,1)
def addsum(C,codes,k):
    M=codes.shape[-1]; return sum(take(C[:,s*k:(s+1)*k],codes[...,s]) for s in range(M))
def additive(y,w,k,M,rounds):
    C=[]; r_=y
    for s in range(M):
        c=kmeans(r_,w,k,8); C.append(c); r_=r_-take(c,assign(r_,c))
    C=torch.cat(C,1)
    for it in range(rounds):
        step=1 if k>=1024 else 6
        for q in range(0,y.shape[0],step):
            yy=y[q:q+step]; codes=beam_codes(yy,C[q:q+step],k,M,W_=4 if k>=1024 else 8,bs=8192 if k>=1024 else 16384)
            for _ in range(2):
                for s in range(M):
                    cc=C[q:q+step]; rest=yy-(addsum(cc,codes,k)-take(cc[:,s*k:(s+1)*k],codes[...,s])); new,_d=wmean(rest,w[q:q+step],codes[...,s],k,cc[:,s*k:(s+1)*k]); C[q:q+step,s*k:(s+1)*k]=new
    return C
def recon(b,l,x,C=None):
    """x [B,G,T,D] -> [B,G,T,D]; differentiable in C (=b.C[l])"""
    C=b.C[l] if C is None else C; bb=x.shape[0]
    with torch.no_grad():
        y=torch.einsum('bgtd,gde->bgte',x-b.f.mu[l][None,:,None],b.f.T[l]).transpose(0,1).reshape(G,bb*T,D); z=groups(y,b.d)
        Cd=C.detach(); a=assign(z,Cd,16384) if b.M==1 else beam_codes(z,Cd,b.k,b.M,W_=4 if b.k>=1024 else 8)
    z=take(C,a) if b.M==1 else addsum(C,a,b.k)
    y=ungroups(z,G).view(G,bb,T,D).transpose(0,1)
    return torch.einsum('bgtd,gde->bgte',y,b.f.Ti[l])+b.f.mu[l][None,:,None]
def relerr(b,X,w):
    """weighted error relative to variance in the frame, mean over heads, on the val capture"""
    e=[]
    for l in range(L):
        y=(X[l].float()-b.f.mu[l][:,None])@b.f.T[l]; z=groups(y,b.d); zz=take(b.C[l],assign(z,b.C[l])) if b.M==1 else addsum(b.C[l],beam_codes(z,b.C[l],b.k,b.M),b.k)
        yh=ungroups(zz,G); e.append(((y-yh)**2*w[l][...,None]).sum()/((y*y)*w[l][...,None]).sum())
    return torch.stack(e).mean().item()
# ------------------------------------------------ attention with policy
class Pol:
    """win, anchors: read by fine books (None: exact). mid: fraction read always by the mid books"""
    def __init__(s,win=32,anchor=.01,fk=None,fv=None,mid=0.,mk=None,mv=None,sinks=0): s.win,s.anchor,s.fk,s.fv,s.mid,s.mk,s.mv,s.sinks=win,anchor,fk,fv,mid,mk,mv,sinks
def mkhook(bk,bv,pol,PK=None,PV=None,beta=None,ste=False,corr=None):
    pick=lambda b,l:b[l] if isinstance(b,list) else b
    def hook(l,q,kp,v):
        bb=q.shape[0]; qr=rope(q)
        kb=recon(pick(bk,l),l,kp,PK[l] if PK is not None else None); vb=recon(pick(bv,l),l,v,PV[l] if PV is not None else None)
        if ste: kb=kb+(kp-kp.detach()); vb=vb+(v-v.detach())
        kf=kp if pol.fk is None else recon(pol.fk,l,kp); vf=v if pol.fv is None else recon(pol.fv,l,v)
        if ste and pol.fk is not None: kf=kf+(kp-kp.detach()); vf=vf+(v-v.detach())
        ex=torch.zeros(bb,G,T,dtype=torch.bool,device=dev); order=None
        if pol.anchor>0 or pol.mid>0:
            with torch.no_grad():
                A=(qr@rep(rope(kp)).transpose(-1,-2)*SC).masked_fill_(~causal,-1e30).softmax(-1); o=A@rep(v); sc=escore(A,o,qr,v); del A
                na=int(math.ceil(pol.anchor*T)); nm=int(pol.mid*T); idx=sc.topk(na+nm,-1).indices; ex.scatter_(2,idx[...,:na],True)
                if nm:
                    md=torch.zeros_like(ex); md.scatter_(2,idx[...,na:],True)
            if nm: kb=torch.where(md[...,None],recon(pol.mk,l,kp),kb); vb=torch.where(md[...,None],recon(pol.mv,l,v),vb)
        if pol.sinks: ex[:,:,:pol.sinks]=True
        s=(qr@rep(rope(kb)).transpose(-1,-2))*SC
        if pol.win or pol.anchor or pol.sinks:
            X=(((dist<pol.win)&causal)[None,None]|rep(ex)[:,:,None,:])
            if beta is not None: s=s+beta[l][None,:,None,None]
            s=torch.where(X,(qr@rep(rope(kf)).transpose(-1,-2))*SC,s)
            A=s.masked_fill(~causal,-1e30).softmax(-1)
            return (A*~X)@rep(vb)+(A*X)@rep(vf)
        return s.masked_fill(~causal,-1e30).softmax(-1)@rep(vb)
    return hook
t00=time.time()
def go(name,bk,bv,pol,c4too=True,**kw):
    t=time.time(); h=mkhook(bk,bv,pol,**kw); a=math.exp(nll(ev,h)); b=math.exp(nll(c4,h)) if c4too else float('nan')
    print(f'{name:58s} wt {a:8.3f} c4 {b:8.3f}  {time.time()-t:5.1f}s  t={time.time()-t00:5.0f}',flush=True); return a
def e2e(bk,bv,pol,epochs=2,lr=.02,Bt=2,ste=False,data=None,log=True,beta=None,maxs=1e9):
    """tune centroids on KL(exact || coded) end to end"""
    data=cal if data is None else data
    PK=[bk.C[l].clone().requires_grad_(True) for l in range(L)]; PV=[bv.C[l].clone().requires_grad_(True) for l in range(L)]; P=PK+PV+([beta.requires_grad_(True)] if beta is not None else [])
    sc=[p.detach().std().item() for p in P[:2*L]]+[.5]; m=[torch.zeros_like(p) for p in P]; v2=[torch.zeros_like(p) for p in P]
    steps=epochs*(len(data)//Bt); st=0; t=time.time(); h=mkhook(bk,bv,pol,PK,PV,ste=ste,beta=beta); gen=torch.Generator().manual_seed(0); acc=0.
    for ep in range(epochs):
        perm=torch.randperm(len(data),generator=gen)
        for i in range(0,len(data)-Bt+1,Bt):
            if time.time()-t>maxs: break
            tok=data[perm[i:i+Bt]]
            with torch.no_grad(): ht=hidden(tok)
            hs=hidden(tok,h,ck=True); loss=0.
            for b in range(Bt):
                with torch.no_grad(): lt=(ht[b]@Emb.T).log_softmax(-1)
                ls=checkpoint(lambda z:torch.nn.functional.kl_div((z@Emb.T).log_softmax(-1),lt,log_target=True,reduction='sum'),hs[b],use_reentrant=False); (ls/(Bt*T)).backward(retain_graph=b<Bt-1); loss+=ls.item()/(Bt*T)
            st+=1; rate=lr*.5*(1+math.cos(math.pi*st/steps)); acc=.95*acc+.05*loss if st>1 else loss
            with torch.no_grad():
                for j,p in enumerate(P):
                    g=p.grad; m[j].mul_(.9).add_(g,alpha=.1); v2[j].mul_(.99).addcmul_(g,g,value=.01)
                    p.sub_(rate*sc[j]*(m[j]/(1-.9**st))/((v2[j]/(1-.99**st)).sqrt()+1e-12)); p.grad=None
        if log: print(f'   e2e ep {ep} kl {acc:.4f} {time.time()-t:.0f}s mem {torch.cuda.max_memory_allocated()/1e9:.0f}G',flush=True)
    a,b=copy.copy(bk),copy.copy(bv); a.C=torch.stack([p.detach() for p in PK]); b.C=torch.stack([p.detach() for p in PV]); return a,b
def local(bk,bv,pol,epochs=2,lr=.02,seq=True,Bt=4,data=None,log=True):
    """tune on (O'-O)W_O layer by layer; seq: q,k,v from the coded stream, target the exact stream"""
    data=cal if data is None else data
    PK=[bk.C[l].clone().requires_grad_(True) for l in range(L)]; PV=[bv.C[l].clone().requires_grad_(True) for l in range(L)]; P=PK+PV
    sc=[p.detach().std().item() for p in P]; m=[torch.zeros_like(p) for p in P]; v2=[torch.zeros_like(p) for p in P]
    steps=epochs*(len(data)//Bt); st=0; h=mkhook(bk,bv,pol,PK,PV); t=time.time()
    for ep in range(epochs):
        tot=0.
        for i in range(0,len(data)-Bt+1,Bt):
            tok=data[i:i+Bt]; st+=1; rate=lr*.5*(1+math.cos(math.pi*st/steps)); of=[]
            def hk0(l,q,kp,v): o=exact_attn(q,kp,v); of.append(o); return o
            with torch.no_grad(): hidden(tok,hk0)
            def hk(l,q,kp,v):
                with torch.enable_grad():
                    o=h(l,q.detach(),kp.detach(),v.detach()); Wo=W[f'blk.{l}.attn_output.weight'].T; nb=o.shape[0]; fl=lambda z:z.transpose(1,2).reshape(nb,T,H*D)@Wo
                    tg=fl(of[l]); loss=((fl(o)-tg)**2).mean()/(tg**2).mean(); gr=torch.autograd.grad(loss,[PK[l],PV[l]])
                hk.t+=loss.item()
                with torch.no_grad():
                    for j,g in zip((l,L+l),gr):
                        m[j].mul_(.9).add_(g,alpha=.1); v2[j].mul_(.99).addcmul_(g,g,value=.01); P[j].sub_(rate*sc[j]*(m[j]/(1-.9**st))/((v2[j]/(1-.99**st)).sqrt()+1e-12))
                return o.detach() if seq else of[l]
            hk.t=0.
            with torch.no_grad(): hidden(tok,hk)
            tot+=hk.t/L
        if log: print(f'   local ep {ep} rel {tot/(len(data)//Bt):.4f} {time.time()-t:.0f}s',flush=True)
    a,b=copy.copy(bk),copy.copy(bv); a.C=torch.stack([p.detach() for p in PK]); b.C=torch.stack([p.detach() for p in PV]); return a,b
