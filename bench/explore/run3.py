from lib import *
torch.manual_seed(0)
c=capture(cal); cv=capture(val); print('capture',time.time()-t00,flush=True)
K,V,wK,wV,MR=c['K'],c['V'],c['wK'],c['wV'],c['MR']
f8=frame(K,wK,8,MR); fK={S:reframe(f8,S) for S in (4,16,32)}; fK[8]=f8; fV=frame(V,wV,8,pca=False,mean=False)
bk=lambda d,k,**kw:train(K,wK,fK[D//d],d,k,**kw); bv=lambda d,k,**kw:train(V,wV,fV,d,k,**kw)
P0,P1=Pol(0,0.),Pol(32,.01)
k1,v1=bk(8,256),bv(8,256)
# V predicted from decoded K of the same head
r2=[]
for l in range(L):
    for g in range(G):
        kd=recon(k1,l,K[l].float().view(G,-1,T,D).transpose(0,1))[:,g].reshape(-1,D) if g==0 else kd_all[:,g].reshape(-1,D)
        if g==0: kd_all=recon(k1,l,K[l].float().view(G,-1,T,D).transpose(0,1)); kd=kd_all[:,0].reshape(-1,D)
        w=wV[l,g][:,None]; w=w/w.sum(); v=V[l,g].float(); vc=v-(v*w).sum(0); kc=kd-(kd*w).sum(0)
        A=torch.linalg.solve((kc*w).T@kc+1e-4*torch.eye(D,device=dev)*((kc*kc*w).sum()/D),(kc*w).T@vc); r2.append(1-(((vc-kc@A)**2*w).sum()/((vc**2)*w).sum()).item())
print('R2 of V from coded K: mean %.3f min %.3f max %.3f'%(np.mean(r2),min(r2),max(r2)),flush=True)
b=e2e(k1,v1,P0,1,maxs=60); go('bare e2e1 8x256',*b,P0)
# sensitivities
def kl8(bK,bV,pol,data=val[:8]):
    h=mkhook(bK,bV,pol); t=0.
    with torch.no_grad():
        for i in range(0,8,4):
            a,s=hidden(data[i:i+4]),hidden(data[i:i+4],h)
            for j in range(4): t+=torch.nn.functional.kl_div((s[j]@Emb.T).log_softmax(-1),(a[j]@Emb.T).log_softmax(-1),log_target=True,reduction='sum').item()
    return t/(8*T)
k5,v5,k2,v2=bk(16,256),bv(16,256),bk(4,256),bv(4,256)
PW=Pol(32,0.); ref=kl8([k1]*L,[v1]*L,PW); print('kl ref',ref,'bits',time.time()-t00,flush=True)
dn,up={},{}
for l in range(L):
    for kind in (0,1):
        for nm,(bb) in (('dn',(k5,v5)),('up',(k2,v2))):
            KK,VV=[k1]*L,[v1]*L
            if kind==0: KK[l]=bb[0]
            else: VV[l]=bb[1]
            (dn if nm=='dn' else up)[l,kind]=kl8(KK,VV,PW)-ref
print('K dn',[round(dn[l,0]*1e4) for l in range(L)],'\nK up',[round(up[l,0]*1e4) for l in range(L)],'\nV dn',[round(dn[l,1]*1e4) for l in range(L)],'\nV up',[round(up[l,1]*1e4) for l in range(L)],time.time()-t00,flush=True)
# average 1 bit: choose upgrades (+1 bit) paid by two downgrades (-.5 bit)
ups=sorted(up,key=lambda x:up[x]); dns=sorted(dn,key=lambda x:dn[x]); bK,bV=[k1]*L,[v1]*L; used=set(); nu=0
while True:
    u=next((x for x in ups if x not in used),None); d=[x for x in dns if x not in used and x!=u][:2]
    if u is None or len(d)<2 or up[u]+dn[d[0]]+dn[d[1]]>=0: break
    used|={u,*d}; nu+=1
    for x,bb in ((u,(k2,v2)),(d[0],(k5,v5)),(d[1],(k5,v5))):
        if x[1]==0: bK[x[0]]=bb[0]
        else: bV[x[0]]=bb[1]
print('upgrades',nu,'predicted',sum(up[x] if x in ups[:0] else 0 for x in up)); go('allocated w32 a1%',bK,bV,P1); go('allocated bare',bK,bV,P0)
beta=torch.zeros(L,H,device=dev); b=e2e(k1,v1,P1,1,maxs=60,beta=beta); print('beta mean',beta.detach().mean().item(),beta.detach().abs().max().item()); go('e2e1 beta',*b,P1,beta=beta.detach())
b=e2e(k1,v1,P1,1,maxs=60,ste=True); go('e2e1 ste',*b,P1)
b=e2e(k1,v1,P1,1,maxs=60,lr=.05); go('e2e1 lr.05',*b,P1)
b=e2e(k1,v1,P1,1,maxs=60,lr=.02,Bt=1); go('e2e1 Bt1',*b,P1)
